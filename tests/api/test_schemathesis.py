"""Whatever is sent, the answers are the ones that OpenAPI describes."""
