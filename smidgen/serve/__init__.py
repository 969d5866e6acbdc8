"""``smidgen serve``: a page for a phone's browser that runs the original and the smaller network side by side.

folder.py        which files of a run the page may have
samples.py       inputs for both networks, and how a picture becomes one
vendor.py        the browser's runtimes, fetched once at build time
routes.py        every address there is, and what lies behind it
server.py        answers them; on loopback unless told otherwise
certificate.py   a self-signed one, for the local network
page/            HTML, CSS and plain JavaScript modules
"""
