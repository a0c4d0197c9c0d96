"""What a machine can do: the parts of `bench`."""
