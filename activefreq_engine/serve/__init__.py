"""`activefreq serve`: a page to annotate in, a REST interface under /v1, and one WebSocket for clicks.

Needs the extra "serve" (fastapi, uvicorn, websockets).  `docs/serve.md` is the user's page, `docs/security.md` says
what is defended against whom.

- `app`: the routes.  `live`: the WebSocket.  `frames`: its binary messages.
- `security`: who is let in.  `connections`: how long a client may take.
- `sessions`: what is served, and how long.  `work`: one session.  `journal`: what survives the process.
- `batches`: the one thread that clicks.  `pictures`: bytes from outside to arrays.  `exports`: masks to files.
"""
