"""Models assembled from `summarymixing.nnet`."""
