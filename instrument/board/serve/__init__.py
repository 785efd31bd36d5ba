"""Serves pages on 127.0.0.1 to whoever has the token, and to no other site.

guard.py   whose request is answered     server.py   requests and answers, streams, the end by Ctrl-C
site.py    the board's addresses         follow.py   the page of one run that goes on, and its stream
"""
