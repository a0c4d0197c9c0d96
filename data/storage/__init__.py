"""Files on this machine's disks and objects in a bucket, by one type of path."""
