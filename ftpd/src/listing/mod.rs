//! Directory entries as text: LIST, NLST, MLSD. Pure.
