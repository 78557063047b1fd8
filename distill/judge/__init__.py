"""The jury: each judge scores an answer on the task's rubric, 0.0 to 1.0 a dimension."""
