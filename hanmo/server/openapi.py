"""The OpenAPI document: the request models' schemas, and what each path answers."""

from typing import Any

from pydantic.json_schema import models_json_schema

from hanmo import __version__
from hanmo.server.requests import Chat, Completion, Embeddings, Fill, Predict

_POSTS = {
    "/v1/completions": (Completion, "Continue texts."),
    "/v1/chat/completions": (Chat, "Answer a dialogue, if a chat template is given."),
    "/v1/embeddings": (Embeddings, "Encode texts as vectors."),
    "/v1/fill": (Fill, "Find tokens for the masks in a text."),
    "/v1/tasks/{name}": (Predict, "Predict with a task."),
}
_GETS = {
    "/v1/models": "List the models.",
    "/v1/models/{name}": "Describe a model.",
    "/health": "Tell whether requests are taken.",
    "/metrics": "Numbers for Prometheus.",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def document(root_path: str) -> dict[str, Any]:
    """Return the document.   root_path: the path prefix under which the server is reached."""
    models = [(model, "validation") for model, _ in _POSTS.values()]
    _, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    paths: dict[str, Any] = {}
    for path, (model, summary) in _POSTS.items():
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
        body = {"required": True, "content": content}
        paths[path] = {"post": {**_operation(path, summary), "requestBody": body}}
    paths |= {path: {"get": _operation(path, summary)} for path, summary in _GETS.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Hanmo", "version": __version__},
        "servers": [{"url": root_path or "/"}],
        "paths": paths,
        "components": {
            "schemas": {**schemas["$defs"], "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, summary: str) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    kind = "text/plain" if path == "/metrics" else "application/json"
    found: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "Done.", "content": {kind: {}}},
            "4XX": {"description": "The request is wrong, or too much at once.", "content": error},
            "503": {"description": "The server is shutting down.", "content": error},
        },
    }
    if "{name}" in path:
        found["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    return found | ({} if path == "/health" else {"security": [{"key": []}]})
