"""What is asked: a study's file, checked, with its defaults, and the encoders that it pretrains."""
