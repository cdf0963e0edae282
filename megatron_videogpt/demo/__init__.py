"""A web page on this machine: drop in a clip, choose clips, steps and guidance, watch the continuation."""
