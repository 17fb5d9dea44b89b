"""The node runner: measures one Linux host and says where its memory went."""
