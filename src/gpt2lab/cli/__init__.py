"""The command line: each command is a dataclass of its options with a `run`; `main` finds and runs it."""
