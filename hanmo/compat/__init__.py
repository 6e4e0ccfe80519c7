"""Old names for new things: the faces that serve scripts written for other libraries."""
