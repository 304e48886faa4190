"""Every fact of the recordings, through the code that real data take."""
