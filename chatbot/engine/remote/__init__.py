"""The external engine: other servers, such as replicas of vLLM."""
