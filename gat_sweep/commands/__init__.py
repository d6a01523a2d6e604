"""The commands of the command line, by what they are about: parse, print, dispatch; nothing else."""
