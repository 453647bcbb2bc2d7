"""Build GPT-2 yourself: the whole of it in one file, exercises made from that file, and their checks."""
