"""The page and the JSON API of `serve`: search in a browser, with the videos and the reasons."""
