"""Write and draw what a run did."""
