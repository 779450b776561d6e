"""What makes the stock `lm_eval` find this package: two files for the top of site-packages, and the hooks they call."""
