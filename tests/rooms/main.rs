//! Rooms from the outside: what each promises, by its public functions alone.

mod decide;
