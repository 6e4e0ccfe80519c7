"""Writing for whole files of prompts: rows in, results in order, and what an interrupted run goes on from."""
