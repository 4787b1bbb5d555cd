"""Few-shot fine-tuning on ODinW: a list of jobs, their results, and the table of averages."""
