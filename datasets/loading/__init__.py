"""From an archive to images, for all data sets of image files: unpack, find and count, decode, cache, split."""
