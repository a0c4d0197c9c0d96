"""The search index: a folder of videos as a LanceDB table that texts are searched in."""
