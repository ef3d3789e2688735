"""Small raw data sets in the real file formats, written on demand, so that everything runs without a download."""
