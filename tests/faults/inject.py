"""Injection of all faults into a domain."""

from tests.faults.of_files import FaultsOfFiles
from tests.faults.of_runs import FaultsOfRuns
from tests.faults.trial import Count


class Faults(FaultsOfRuns, FaultsOfFiles):
    """The faults of one domain."""

    def inject(self) -> dict[str, Count]:
        """Injects all of them."""
        self.reference()
        self.kill_and_resume()
        self.stop_and_resume()
        self.damage_states()
        self.spoil_steps()
        self.fill_disk_of_run()
        self.fill_disk()
        self.hostile_files()
        self.hostile_models()
        self.damage_files()
        self.disturb_prepare()
        return self.counts
