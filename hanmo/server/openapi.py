"""The OpenAPI document: the request models' schemas, and what each path answers."""

from typing import Any

from pydantic.json_schema import models_json_schema

from hanmo import __version__
from hanmo.server.requests import Chat, Completion, Embeddings, Fill, Predict


def _object(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(fields), "properties": fields}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_TEXT, _INTEGER, _TEXT_OR_NULL = {"type": "string"}, {"type": "integer"}, {"type": ["string", "null"]}
_USAGE = {"prompt_tokens": _INTEGER, "total_tokens": _INTEGER}
_FRAME = {
    **dict.fromkeys(("id", "object", "model", "system_fingerprint"), _TEXT),
    "created": _INTEGER,
    "seed": {"type": ["integer", "null"]},
    "usage": _object(**_USAGE, completion_tokens=_INTEGER),
}
_CHOICE = {
    "index": _INTEGER,
    "logprobs": {"type": ["object", "null"]},
    "finish_reason": _TEXT_OR_NULL,
    "stop_reason": _TEXT_OR_NULL,
}
_TEXT_CHOICE = _object(**_CHOICE, text=_TEXT)
_TEXT_CHOICE["properties"]["score"] = {"type": "number", "description": "With beams."}
_VECTOR = _object(object=_TEXT, index=_INTEGER, embedding={"type": ["array", "string"]})
_MODEL = _object(
    **dict.fromkeys(("id", "object", "owned_by", "family"), _TEXT),
    created=_INTEGER,
    max_model_len={"type": ["integer", "null"]},
    abilities=_list(_TEXT),
    mask=_TEXT_OR_NULL,
)
_ERROR = _object(error=_object(message=_TEXT, type=_TEXT, param=_TEXT_OR_NULL, code=_TEXT_OR_NULL))

_POSTS = {
    "/v1/completions": (
        Completion,
        "Continue texts.",
        _object(**_FRAME, choices=_list(_TEXT_CHOICE)),
    ),
    "/v1/chat/completions": (
        Chat,
        "Answer a dialogue, if a chat template is given.",
        _object(**_FRAME, choices=_list(_object(**_CHOICE, message=_object(role=_TEXT, content=_TEXT)))),
    ),
    "/v1/embeddings": (
        Embeddings,
        "Encode texts as vectors.",
        _object(object=_TEXT, model=_TEXT, usage=_object(**_USAGE), data=_list(_VECTOR)),
    ),
    "/v1/fill": (
        Fill,
        "Find tokens for the masks in a text.",
        _object(object=_TEXT, model=_TEXT, masks=_list(_list(_object(token=_TEXT, probability={"type": "number"})))),
    ),
    "/v1/tasks/{name}": (
        Predict,
        "Predict with a task.",
        _object(object=_TEXT, model=_TEXT, results=_list({})),
    ),
}
_GETS = {
    "/v1/models": ("List the models.", _object(object=_TEXT, data=_list(_MODEL))),
    "/v1/models/{name}": ("Describe a model.", _MODEL),
    "/health": ("Tell whether requests are taken.", _object(status=_TEXT)),
    "/metrics": ("Numbers for Prometheus.", _TEXT),
}


def document(root_path: str) -> dict[str, Any]:
    """Return the document.   root_path: the path prefix under which the server is reached."""
    models = [(model, "validation") for model, *_ in _POSTS.values()]
    _, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    paths: dict[str, Any] = {}
    for path, (model, summary, answer) in _POSTS.items():
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
        body = {"required": True, "content": content}
        paths[path] = {"post": {**_operation(path, summary, answer), "requestBody": body}}
    paths |= {path: {"get": _operation(path, summary, answer)} for path, (summary, answer) in _GETS.items()}
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


def _operation(path: str, summary: str, answer: dict[str, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    content = {"text/plain" if path == "/metrics" else "application/json": {"schema": answer}}
    if path.endswith("completions"):  # with stream=true
        content["text/event-stream"] = {"schema": _TEXT}
    found: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "Done.", "content": content},
            "4XX": {"description": "The request is wrong, or too much at once.", "content": error},
            "503": {"description": "The server is shutting down.", "content": error},
        },
    }
    if "{name}" in path:
        found["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    return found | ({} if path == "/health" else {"security": [{"key": []}]})
