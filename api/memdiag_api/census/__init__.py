"""Records of the census of kernel objects, one file for each subject."""
