"""What is asked of the server and answered by it, in the API's words."""
