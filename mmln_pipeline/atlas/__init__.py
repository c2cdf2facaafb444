"""What templates bring: labels and their tables, templates, tables of several atlases, label fusion."""
