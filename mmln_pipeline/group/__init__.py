"""What is worked out over many images: means, agreement of labels, outliers."""
