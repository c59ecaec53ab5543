"""Raw files of one study -> prepared folder."""
