//! Wire messages, their validation, and the error table
