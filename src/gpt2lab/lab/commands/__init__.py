"""What the verbs of the command line do: read, call the library, show progress, print."""
