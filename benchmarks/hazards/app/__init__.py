"""The app that every peer serves: the same models, handlers and watcher, whoever gives the session."""
