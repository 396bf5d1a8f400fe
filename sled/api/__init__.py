"""An OpenAI-compatible HTTP server on the device, and the chat page it serves.

Needs the extra `api` (uvicorn, starlette); `sled` itself imports none of it.
"""
