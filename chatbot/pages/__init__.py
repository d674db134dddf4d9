"""What people see in the browser: chat, review, adapters."""
