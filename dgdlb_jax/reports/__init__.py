"""What people read: text, tables, pictures, HTML pages, exported routings."""
