"""The library: tasks, prompts, teachers, curation, judging, training, evaluation, gates, cost."""
