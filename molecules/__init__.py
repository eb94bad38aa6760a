"""The place of the molecules domain: autoregressive flows over molecular graphs. There is nothing in it yet."""
