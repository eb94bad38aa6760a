"""The command line: dispatch, the commands that belong to no domain, reports and measurements."""
