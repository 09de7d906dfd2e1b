"""What every run stands on: command line, processes, folder, checkpoints."""
