"""Drawing a finished study: the folder, the page, figures and terminal output."""
