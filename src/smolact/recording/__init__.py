"""Recording of episodes to a dataset, from a robot or a scripted expert, and their replay."""
