// The part of Grand Central Dispatch that the backend meets, with Apple's signatures.
#pragma once

typedef struct dispatch_queue_s* dispatch_queue_t;
#ifdef __BLOCKS__
typedef void (^dispatch_block_t)(void);

extern "C" void dispatch_sync(dispatch_queue_t queue, dispatch_block_t block);
#endif
