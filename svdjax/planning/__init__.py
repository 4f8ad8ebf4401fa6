"""What a run needs and how fast it can be, found by compiling it for chips that are not there."""
