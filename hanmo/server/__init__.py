"""The HTTP server: OpenAI's completions and embeddings, filling and tasks, over rows that join a running batch.

Needs the extra `hanmo[serve]`. `app.make_app` gives an ASGI application, `run.serve` runs it.
"""
