// What torch's own MPS headers name.
#pragma once

#import <Metal/Metal.h>

@interface MPSCommandBuffer : NSObject
@end
