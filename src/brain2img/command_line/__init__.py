"""From what was typed to a stage that runs: the only code that knows Hydra's command line."""
