"""From a folder of videos to the clips of an index."""
