//! From the spool to the database: everything, in order, once, whatever the database does.
