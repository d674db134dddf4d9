"""The torch engine in processes of its own, called workers, one or more.

The server's interpreter is busy with HTTP, pages and the database; an engine on the same one waits
for it at every step. Several of few threads each say more than one of many, whose threads wait for
each other after every product. `engine` spreads requests over them, `worker` is one of them as the
server sees it, `child` is what runs in its process, `messages` what the two say.
"""
